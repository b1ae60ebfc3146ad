"""Shards to batches: sample order, mixtures, readers, prefetching."""
