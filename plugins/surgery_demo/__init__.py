"""The demonstration material of model-surgery: text collections, a sentence encoder's weights and a small GPT-2."""
