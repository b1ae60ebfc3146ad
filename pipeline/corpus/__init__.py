"""Where text comes from: files and formats, read into documents."""
