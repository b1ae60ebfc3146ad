"""The write wing: text to token IDs, token IDs to windows, windows to Parquet shards."""
