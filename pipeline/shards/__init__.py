"""Windows to Parquet: format, layout, manifest, plan, write, verify, card."""
