package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
)

const (
	// The key whose watches are measured, and a prefix of keys that nobody changes.
	watchedKey  = "/watched"
	idlePrefix  = "/idle/"
	idleWatches = 100_000
	idleStreams = 100
	// The most streams of the watchers that are measured.
	maxStreams = 100
	// The time in which an event must reach all watchers, and idle watches must be created.
	watchPatience = time.Minute
)

// fanOut is a number of watchers of one key. A put follows when all watchers have the event of the one before.
type fanOut int

func (f fanOut) name() string {
	if f == 1 {
		return "event to 1 watcher"
	}
	return fmt.Sprintf("event to %d watchers", int(f))
}

// load measures the time from the begin of a put to the event, for each watcher.
func (f fanOut) load(s *side, turn time.Duration, into *result) error {
	ctx, cancel := context.WithCancel(s.context())
	defer cancel()
	var lock sync.Mutex
	var took []time.Duration
	streams := min(int(f), maxStreams)
	arrived := make(chan error, f)
	for at := range streams {
		// The first ones have the rest.
		watches := int(f) / streams
		if at < int(f)%streams {
			watches++
		}
		stream, err := s.watch(ctx, at, watches, func(int) string { return watchedKey })
		if err != nil {
			return err
		}
		go func() {
			for {
				answer, err := stream.Recv()
				if err != nil {
					arrived <- err
					return
				}
				for _, event := range answer.Events {
					sent, err := strconv.ParseInt(string(event.Kv.Value), 10, 64)
					if err == nil {
						lock.Lock()
						took = append(took, time.Since(time.Unix(0, sent)))
						lock.Unlock()
					}
					arrived <- err
				}
			}
		}()
	}
	kv := pb.NewKVClient(s.conns[0])
	start := time.Now()
	for time.Since(start) < turn {
		value := strconv.FormatInt(time.Now().UnixNano(), 10)
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(watchedKey), Value: []byte(value)}); err != nil {
			return err
		}
		late := time.After(watchPatience)
		for watcher := range int(f) {
			select {
			case err := <-arrived:
				if err != nil {
					return err
				}
			case <-late:
				return fmt.Errorf("an event reached %d of %d watchers", watcher, int(f))
			}
		}
	}
	into.spent += time.Since(start)
	into.took = append(into.took, took...)
	return nil
}

// idle creates watches that get no event, and returns by how much the memory of the servers has grown.
func (s *side) idle() (int64, error) {
	ctx, cancel := context.WithCancel(s.context())
	defer cancel()
	before, err := s.memory()
	if err != nil {
		return 0, err
	}
	each := idleWatches / idleStreams
	for at := range idleStreams {
		name := func(watch int) string { return fmt.Sprintf("%s%08d", idlePrefix, at*each+watch) }
		if _, err := s.watch(ctx, at, each, name); err != nil {
			return 0, err
		}
	}
	after, err := s.memory()
	return after - before, err
}

// watch opens a stream over one of the connections, and returns when all its watches are created.
func (s *side) watch(ctx context.Context, at, watches int, key func(int) string) (pb.Watch_WatchClient, error) {
	stream, err := pb.NewWatchClient(s.conns[at%len(s.conns)]).Watch(ctx)
	if err != nil {
		return nil, err
	}
	sent := make(chan error, 1)
	go func() {
		for watch := range watches {
			create := &pb.WatchCreateRequest{Key: []byte(key(watch))}
			request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
			if err := stream.Send(request); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range watches {
		answer, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if !answer.Created || answer.Canceled {
			return nil, fmt.Errorf("a watch isn't created: %v", answer)
		}
	}
	return stream, <-sent
}

// context returns the context of calls, which names the keyspace.
func (s *side) context() context.Context {
	ctx := context.Background()
	if s.keyspace != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "shardkv-keyspace", s.keyspace)
	}
	return ctx
}

// mebibytes returns the largest of some sizes: servers use memory again that they have grown by before.
func mebibytes(sizes []int64) string {
	return fmt.Sprintf("%d MiB", slices.Max(sizes)>>20)
}
