"""What was found: fronts, tables, pictures, pages. Imports no model code."""
