"""What was lost, and where: error measures and their tables."""
