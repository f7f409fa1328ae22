"""The `ci-admin` command for operators: users, keys, doctor, up."""
