"""What is measured, and the `itl` command: studies, statistics, figures and reports."""
