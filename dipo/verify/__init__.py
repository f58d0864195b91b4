"""Loads what was written in the programs that read it, and says what they make of every tensor."""
