"""The commands: Hydra and the screen; what they do lies in the packages below.

A command imports those within its job, so that its help and its refusals do not wait for torch.
"""
