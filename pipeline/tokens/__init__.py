"""The token store: each ID once, with the position and source of each document."""
