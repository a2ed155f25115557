# Runs tests side by side, each in a process of its own with a time limit, and tells of each in one line that begins
# with "icebox-test". Its variables come from what stands before it; /data/tests and /data/alone, whose tests run one by
# one when all others are done, have a line for each test: number, program, name.
mkdir -p /data/log
cat >/data/one <<'END'
log=/data/log/$1
begin=$(date +%s%N)
timeout -k 10 "$TEST_SECONDS_MAX" "$2" --exact "$3" >"$log" 2>&1
status=$?
end=$(date +%s%N)
# A program that ran no test, or ignored it, ends well too.
[ $status != 0 ] || grep -q '^test result: ok. 1 passed' "$log" || status=skipped
exec 9>/data/log/lock
flock 9
[ $status = 0 ] || sed 's/^/    /' "$log"
echo "icebox-test $1 $status $(((end - begin) / 1000000))"
END
xargs -r -P "$TEST_THREADS" -n 3 sh /data/one </data/tests
xargs -r -n 3 sh /data/one </data/alone
