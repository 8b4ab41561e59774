"""One task a night for Airflow 3: `pipeline run` of a job file. Copy this into the DAGs folder.

The command is installed on Airflow's workers as pipeline-nightly.service says, in an environment of
its own: what it needs and what Airflow needs would get in each other's way.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="pipeline_nightly",
    schedule="17 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # one run covers all nights that were missed
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=8),  # all tries together; the job's own deadline is for one
):
    BashOperator(
        task_id="nightly",
        bash_command=(
            "exec /opt/augmentation-pipeline/bin/pipeline"
            " run /etc/augmentation-pipeline/nightly.yaml --log-format json"
        ),
        env={"PHOTOS": "/srv/photos"},
        append_env=True,
        cwd="/var/lib/augmentation-pipeline",
        skip_on_exit_code=4,  # another run of the job is going, which does the work
        # For 5 and 143: the next try goes on where this one ended. Airflow cannot tell them from 1,
        # 2 and 3, which end the next tries alike, and soon: finished shards are kept. Nor from 6,
        # the deadline, for which the time of all tries has an end.
        retries=3,
        retry_delay=timedelta(minutes=1),
        retry_exponential_backoff=5.0,
        max_retry_delay=timedelta(minutes=30),
        execution_timeout=timedelta(hours=8),
        do_xcom_push=False,
    )
