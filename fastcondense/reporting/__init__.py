"""What people look at: tables, grids, and the report's page."""
