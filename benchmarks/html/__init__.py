"""The HTML report's parts: words and numbers, charts, and the template that holds them."""
