"""Parts of the report's page: the recipe and its drawing, answers side by side."""
