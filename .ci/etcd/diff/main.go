// Command diff holds a store against a real etcd: it sends the same random calls in the same order to both, and compares every
// answer, error, text and event.
//
//	go run ./diff -etcd FILE [-bin DIR] [-seeds 0..20] [-steps 400]
//
// With -bin, the store is a keyspace of a playground that the programs in this folder make: a fresh one for each seed, named by
// metadata or, at odd seeds, by the authority. Without -bin it is another etcd, of which no difference is expected: that checks this
// program. Ids of cluster and member, the raft term and the order of ties are not compared, and the calls that stop an etcd are not
// made. Exits with 1 at the first difference, and prints the seed, the call and both answers.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"shardkv.dev/ci/etcd/process"
)

func main() {
	etcd := flag.String("etcd", "", "the program etcd")
	bin := flag.String("bin", "", "the folder of shardkv and shardkv-node; without it a second etcd is compared")
	seeds := flag.String("seeds", "0..20", "the seeds of the histories: from the first up to the last, without it")
	steps := flag.Int("steps", 400, "the steps of a history")
	flag.Parse()
	var first, end uint64
	if _, err := fmt.Sscanf(*seeds, "%d..%d", &first, &end); err != nil || first >= end || *etcd == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*etcd, *bin, first, end, *steps); err != nil {
		fmt.Fprintln(os.Stderr, "etcd-diff:", err)
		os.Exit(1)
	}
}

func run(etcd, bin string, first, end uint64, steps int) error {
	started := time.Now()
	stores, err := newStores(etcd, bin)
	if err != nil {
		return err
	}
	defer stores.stop()
	var total counts
	for seed := first; seed < end; seed++ {
		counted, err := compare(etcd, stores, seed, steps)
		if err != nil {
			return fmt.Errorf("seed %d, after %d calls: %w\n  again: make etcd-diff SEEDS=%d..%d", seed, counted.calls, err, seed, seed+1)
		}
		total.add(counted)
	}
	fmt.Printf("etcd-diff: %s: %d histories with %d calls (%d refused), %d watches and %d events, every answer and event equal (%.0f s)\n",
		stores.name, end-first, total.calls, total.refusals, total.watches, total.events, time.Since(started).Seconds())
	return nil
}

// compare makes one history against a fresh etcd and a fresh store.
func compare(program string, stores *stores, seed uint64, steps int) (counts, error) {
	etcd, err := process.Etcd(program)
	if err != nil {
		return counts{}, err
	}
	defer etcd.Stop()
	reference, err := dial("etcd", etcd.Addresses[0], "", false)
	if err != nil {
		return counts{}, err
	}
	defer reference.conn.Close()
	store, stop, err := stores.fresh(seed)
	if err != nil {
		return counts{}, err
	}
	defer stop()
	defer store.conn.Close()
	history := history{source: newSource(seed), sides: [2]*side{reference, store}}
	err = history.run(steps)
	return history.counts, err
}
