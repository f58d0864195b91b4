"""Workers, on Ray or in this process."""
