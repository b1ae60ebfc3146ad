"""Local folders and prefixes of buckets, behind one small interface."""
