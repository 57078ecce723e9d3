"""What tests are made of: small collections and models, servers, processes that are killed, spoilt files."""
