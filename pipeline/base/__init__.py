"""What every room uses: atomic files, locks, hashes, permutations, memory."""
