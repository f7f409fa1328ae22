"""`python -m ci_client`: the `ci` command where its script is not on the path."""

from ci_client.cli import main

if __name__ == "__main__":
    main()
