"""What a fit says: tables, verdicts, comparisons, changes between sessions."""
