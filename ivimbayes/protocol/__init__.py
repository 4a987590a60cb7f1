"""What b values can tell: checks, expected precision, design."""
