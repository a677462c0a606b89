"""What a run leaves behind: metrics, tables, evaluation."""
