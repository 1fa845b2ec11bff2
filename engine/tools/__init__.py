"""What is offered: tools, prompts and resources, as they are declared, found and described."""
