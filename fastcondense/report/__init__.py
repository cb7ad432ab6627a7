"""The report that a person looks at: tables, plots, the page."""
