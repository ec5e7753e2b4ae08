"""What a run has found: report, tables, known differences, names of wrong answers."""
