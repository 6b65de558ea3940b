"""Networks: architectures, activations, and loading checkpoints and users' files."""
