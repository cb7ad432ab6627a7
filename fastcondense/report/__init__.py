"""What a person looks at: tables, plots, the page."""
