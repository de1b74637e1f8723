"""Our own addresses: what whoever runs the fleet may change about it. Errors are as OpenAI writes them."""
