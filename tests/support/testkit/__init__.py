"""What tests of every folder share: small models, real files, and runs in processes of their own."""
