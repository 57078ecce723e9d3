"""The studio: a page in the browser on which people try a collection."""
