"""config.yaml and the environment to frozen settings: the model, and the loader."""
