"""What every room uses: atomic files, locks, permutations, memory."""
