"""What other tools evaluated, taken over as runs; and what runs trained, handed over to other tools."""
