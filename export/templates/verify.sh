#!/bin/sh
# Is this package whole, and does its model put out on this board what it did where it was packaged?
# One line says so. Exit code 0: yes; 1: no; 2: it cannot be checked here, and the line names what is missing.
# From any folder: sh verify.sh. PYTHON=... names another interpreter than python3.
set -u
export LC_ALL=C

end() { # code, what it means, why
    printf '%s: %s\n' "$2" "$3"
    exit "$1"
}
no() { end 1 no "$1"; }
cannot() { end 2 'cannot be checked here' "$1"; }

case $0 in
*/*) CDPATH='' cd -- "${0%/*}/" || cannot "${0%/*} cannot be entered" ;;
esac
python=${PYTHON:-python3}

command -v sha256sum >/dev/null || cannot 'sha256sum is missing (coreutils or busybox)'
[ -f SHA256SUMS ] || no 'SHA256SUMS is missing; copy the package again'
if ! sums=$(sha256sum -c SHA256SUMS 2>&1); then
    file=$(printf '%s\n' "$sums" | sed -n 's/: FAILED.*//p' | head -n 1)
    [ -e "$file" ] || no "${file:-a file} is missing; copy the package again"
    no "$file is not what was packaged, its SHA-256 differs; copy the package again"
fi

command -v "$python" >/dev/null || cannot "$python is missing; the files are whole"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' || cannot "$python is older than Python 3.8"
for module in numpy onnxruntime; do
    "$python" -c "import importlib.util as util, sys; sys.exit(util.find_spec('$module') is None)" ||
        cannot "Python package $module is missing; the files are whole"
done
said=$("$python" example.py 2>&1) || no "$(printf '%s\n' "$said" | tail -n 1)"
end 0 yes "all files are whole; $(printf '%s\n' "$said" | tail -n 1)"
