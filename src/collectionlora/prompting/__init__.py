"""AOP, asymmetric orthogonal prompting: triggers, student prompts and the model that rewrites them."""
