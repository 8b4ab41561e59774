"""Formats of shards by name. Each module offers `shard_name`, `Writer`, `read_schema`, `read`,
`read_copy` and `read_columns`."""

from datasets import parquet, tfrecord

FORMATS = {"parquet": parquet, "tfrecord": tfrecord}
