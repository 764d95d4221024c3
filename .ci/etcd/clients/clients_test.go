// Package clients uses keyspaces through etcd's own client and its concurrency package, as applications do.
package clients

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"shardkv.dev/ci/etcd/process"
)

// The time that a test may take.
const timeout = time.Minute

// The playground with the keyspaces to use. Without it, real etcds are used, which checks these tests.
var (
	playground *process.Playground
	program    = os.Getenv("ETCD")
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	bin := os.Getenv("SHARDKV_BIN")
	switch {
	case bin != "":
		if playground, err = process.StartPlayground(bin); err != nil {
			fmt.Println(err)
			return 1
		}
		defer playground.Stop()
	case program == "":
		fmt.Println("skipped: neither SHARDKV_BIN nor ETCD is set")
		return 0
	}
	return m.Run()
}

// connect returns a client of a fresh keyspace, which it names by metadata, or of a fresh etcd.
func connect(t *testing.T, name string) (*clientv3.Client, context.Context) {
	t.Helper()
	if playground == nil {
		etcd, err := process.Etcd(program)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(etcd.Stop)
		return dial(t, name, etcd.Addresses), deadline(t)
	}
	if err := playground.Keyspace("create", name); err != nil {
		t.Fatal(err)
	}
	return dial(t, name, playground.Addresses), deadline(t)
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// dial returns a client of a keyspace, which it names by metadata.
func dial(t *testing.T, name string, addresses []string) *clientv3.Client {
	t.Helper()
	named := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "shardkv-keyspace", name)
	}
	unary := func(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		return invoke(named(ctx), method, request, answer, conn, options...)
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
		return open(named(ctx), desc, conn, method, options...)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   addresses,
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(unary), grpc.WithChainStreamInterceptor(stream)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func TestKeysAndTransactions(t *testing.T) {
	client, ctx := connect(t, "keys")
	for i := range 30 {
		must[*clientv3.PutResponse](t)(client.Put(ctx, fmt.Sprintf("k/%02d", i), "v"))
	}
	all := must[*clientv3.GetResponse](t)(client.Get(ctx, "k/", clientv3.WithPrefix(), clientv3.WithLimit(10)))
	if all.Count != 30 || len(all.Kvs) != 10 || !all.More || all.Header.Revision != 31 {
		t.Fatalf("%d pairs of %d at %d", len(all.Kvs), all.Count, all.Header.Revision)
	}
	absent := clientv3.Compare(clientv3.CreateRevision("lock"), "=", 0)
	take := client.Txn(ctx).If(absent).Then(clientv3.OpPut("lock", "me")).Else(clientv3.OpGet("lock"))
	if !must[*clientv3.TxnResponse](t)(take.Commit()).Succeeded {
		t.Fatal("the lock is taken")
	}
	again := client.Txn(ctx).If(absent).Then(clientv3.OpPut("lock", "you")).Else(clientv3.OpGet("lock"))
	refused := must[*clientv3.TxnResponse](t)(again.Commit())
	if refused.Succeeded || string(refused.Responses[0].GetResponseRange().Kvs[0].Value) != "me" {
		t.Fatalf("taken twice: %v", refused)
	}
	must[*clientv3.CompactResponse](t)(client.Compact(ctx, 20))
	if _, err := client.Get(ctx, "k/01", clientv3.WithRev(10)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatalf("a compacted revision: %v", err)
	}
	if deleted := must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "k/", clientv3.WithPrefix())); deleted.Deleted != 30 {
		t.Fatalf("%d deleted", deleted.Deleted)
	}
}

func TestUnknownKeyspace(t *testing.T) {
	if playground == nil {
		t.Skip("an etcd has no keyspaces")
	}
	client, ctx := dial(t, "nobody-made-it", playground.Addresses), deadline(t)
	if _, err := client.Get(ctx, "k"); err == nil {
		t.Fatal("a keyspace that nobody has created answers")
	}
}
