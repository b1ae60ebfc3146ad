"""The load wing: Parquet shards to batches, batches to vectors."""
