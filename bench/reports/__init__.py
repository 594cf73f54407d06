"""What was found: fronts, tables, pictures. Imports no model code."""
