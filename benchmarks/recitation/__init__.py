"""How much of a text a model goes on with by heart."""
