"""Loading of written files in the programs that read them, and a report of what became of every tensor."""
