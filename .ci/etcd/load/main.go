// Command load measures a keyspace and a real etcd with the same load, in turns, on the same machine and disk.
//
//	go run ./load -etcd FILE -bin DIR [-seconds 5] [-rounds 2] [-only put]
//
// Both have three members with synced logs. The load speaks etcd's API to both, over eight connections that are spread over the
// members. Each measure runs in turns: etcd, keyspace, keyspace, etcd. The table has calls per second and latencies, over all
// rounds, and the ratio of the keyspace to etcd. For events of watches, a call is one event at one watcher, and its latency is the
// time since the put began. At the end stands the memory that idle watches take in all servers (-only memory). The load and the six servers share the machine's cores.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"shardkv.dev/ci/etcd/process"
)

const (
	connections = 8
	keys        = 10_000
	valueBytes  = 256
)

// side is one of the two stores.
type side struct {
	name string
	// The addresses of the members.
	servers []string
	// Returns the memory of all its processes.
	memory func() (int64, error)
	// The keyspace that calls name, if any.
	keyspace string
	conns    []*grpc.ClientConn
}

func main() {
	etcd := flag.String("etcd", "", "the program etcd")
	bin := flag.String("bin", "", "the folder of shardkv and shardkv-node")
	seconds := flag.Int("seconds", 5, "the duration of one turn")
	rounds := flag.Int("rounds", 2, "the turns of each side")
	only := flag.String("only", "", "the measures whose names begin so")
	flag.Parse()
	if *etcd == "" || *bin == "" || *seconds < 1 || *rounds < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*etcd, *bin, time.Duration(*seconds)*time.Second, *rounds, *only); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(etcd, bin string, turn time.Duration, rounds int, only string) error {
	reference, err := process.EtcdCluster(etcd)
	if err != nil {
		return err
	}
	defer reference.Stop()
	playground, err := process.StartReplicas(bin)
	if err != nil {
		return err
	}
	defer playground.Stop()
	if err := playground.Keyspace("create", "load"); err != nil {
		return err
	}
	sides := []*side{
		{name: "etcd", servers: reference.Addresses, memory: reference.Memory},
		{name: "keyspace", servers: playground.Members, memory: playground.Memory, keyspace: "load"},
	}
	for _, side := range sides {
		if err := side.prepare(); err != nil {
			return fmt.Errorf("%s: %w", side.name, err)
		}
	}
	fmt.Println("| load | etcd calls/s | p50 | p99 | keyspace calls/s | p50 | p99 | ratio |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, measure := range loads() {
		if !strings.HasPrefix(measure.name, only) {
			continue
		}
		found := [2]*result{{}, {}}
		err := inTurns(sides, rounds, func(at int) error { return measure.load(sides[at], turn, found[at]) })
		if err != nil {
			return fmt.Errorf("%s, %w", measure.name, err)
		}
		etcds, ours := found[0], found[1]
		fmt.Printf("| %s | %s | %s | %.2f |\n", measure.name, etcds, ours, ours.rate()/etcds.rate())
	}
	if strings.HasPrefix("memory", only) {
		return memory(sides, rounds)
	}
	return nil
}

// inTurns calls for one side and the other. The order changes, so that neither side is always the second.
func inTurns(sides []*side, rounds int, do func(at int) error) error {
	for round := range rounds {
		for turnOf := range 2 {
			at := (round + turnOf) % 2
			if err := do(at); err != nil {
				return fmt.Errorf("%s: %w", sides[at].name, err)
			}
		}
	}
	return nil
}

// memory prints by how much idle watches let the memory of the servers grow.
func memory(sides []*side, rounds int) error {
	var found [2][]int64
	err := inTurns(sides, rounds, func(at int) error {
		grown, err := sides[at].idle()
		found[at] = append(found[at], grown)
		return err
	})
	if err != nil {
		return fmt.Errorf("idle watches, %w", err)
	}
	fmt.Printf("\nMemory for %d idle watches, over all members: etcd %s, keyspace %s.\n",
		idleWatches, mebibytes(found[0]), mebibytes(found[1]))
	return nil
}

// prepare connects, and writes each key once.
func (s *side) prepare() error {
	for at := range connections {
		address := s.servers[at%len(s.servers)]
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			return err
		}
		s.conns = append(s.conns, conn)
	}
	all := measure{clients: 64, call: func(ctx context.Context, kv pb.KVClient, number int) error {
		_, err := kv.Put(ctx, put(number))
		return err
	}}
	return s.each(all, func(number int) bool { return number < keys }, nil)
}

// load makes calls for some time.
func (s *side) load(m measure, turn time.Duration, into *result) error {
	start := time.Now()
	end := start.Add(turn)
	err := s.each(m, func(int) bool { return time.Now().Before(end) }, into)
	into.spent += time.Since(start)
	return err
}

// each makes calls with all clients while `more` says so.
func (s *side) each(m measure, more func(number int) bool, into *result) error {
	ctx, cancel := context.WithCancel(s.context())
	defer cancel()
	var wait sync.WaitGroup
	var lock sync.Mutex
	var failure error
	for client := range m.clients {
		wait.Go(func() {
			kv := pb.NewKVClient(s.conns[client%len(s.conns)])
			var took []time.Duration
			for number := client; more(number); number += m.clients {
				start := time.Now()
				if err := m.call(ctx, kv, number); err != nil {
					lock.Lock()
					if failure == nil {
						failure = err
					}
					lock.Unlock()
					cancel()
					return
				}
				took = append(took, time.Since(start))
			}
			if into != nil {
				lock.Lock()
				into.took = append(into.took, took...)
				lock.Unlock()
			}
		})
	}
	wait.Wait()
	return failure
}

// result is what was measured of one side.
type result struct {
	took  []time.Duration
	spent time.Duration
}

func (r *result) rate() float64 {
	return float64(len(r.took)) / r.spent.Seconds()
}

func (r *result) percentile(of float64) time.Duration {
	if len(r.took) == 0 {
		return 0
	}
	return r.took[int(of*float64(len(r.took)-1))]
}

func (r *result) String() string {
	sort.Slice(r.took, func(a, b int) bool { return r.took[a] < r.took[b] })
	ms := func(took time.Duration) string { return fmt.Sprintf("%.1f ms", float64(took.Microseconds())/1000) }
	return fmt.Sprintf("%.0f | %s | %s", r.rate(), ms(r.percentile(0.5)), ms(r.percentile(0.99)))
}
