"""The commands: Hydra and the screen; what they do lies in the packages below."""
