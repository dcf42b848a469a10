"""Prints what is installed, and what is missing or known to clash: python -m mmaselect."""
import argparse
import json
import sys

from mmaselect.environment import examine, report

if __name__ == '__main__':
    parser = argparse.ArgumentParser('python -m mmaselect', description=__doc__.partition(':')[0] + '.',
                                     epilog='Ends with 1 where there are problems.')
    parser.add_argument('--json', action='store_true', help='print it for a program')
    args = parser.parse_args()
    env = examine()
    print(json.dumps(env, indent=2) if args.json else report(env))
    sys.exit(bool(env['problems']))
