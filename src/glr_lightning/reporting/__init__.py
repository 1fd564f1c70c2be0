"""What `glr-report` is made of: run folders read back (results), tables, figures, and the forms of a report."""
