"""Image classifiers, and any other model that returns logits."""
