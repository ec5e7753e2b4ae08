"""The results of a run: report, summary, known differences, diagnosis of wrong answers."""
