"""Tables, verdict, figures and page of the report."""
