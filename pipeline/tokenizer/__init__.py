"""Text to token IDs: vocabularies, the engines that encode with them, and the cross-check."""
